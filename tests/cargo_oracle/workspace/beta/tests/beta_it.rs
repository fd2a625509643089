support::tests!(beta_it);
