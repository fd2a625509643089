support::tests!(alpha_bench);
