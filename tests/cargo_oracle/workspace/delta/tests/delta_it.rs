support::tests!(delta_it);
