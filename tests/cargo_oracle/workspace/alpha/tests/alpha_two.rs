support::tests!(alpha_two);
