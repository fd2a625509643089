support::tests!(gamma_extra);
