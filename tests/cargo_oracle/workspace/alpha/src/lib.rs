support::tests!(alpha_lib);
