fn main() {
    println!("alpha_example");
}

support::tests!(alpha_example);
