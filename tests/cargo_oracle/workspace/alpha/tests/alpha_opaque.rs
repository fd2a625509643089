fn main() {
    support::opaque("alpha_opaque");
}
