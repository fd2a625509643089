fn main() {
    support::harness(&["mimic_a", "mimic_b", "mimic_c_ignored"]);
}
