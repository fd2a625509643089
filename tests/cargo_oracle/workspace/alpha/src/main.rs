fn main() {
    println!("alpha");
}

support::tests!(alpha_bin);
