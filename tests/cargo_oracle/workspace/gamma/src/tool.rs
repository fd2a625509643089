fn main() {
    println!("extra: {}", cfg!(feature = "extra"));
}

support::tests!(gamma_tool);
