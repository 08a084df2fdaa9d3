//! Random choices, the same for the same seed.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// From `SEED`, or from one that differs between runs. Prints it.
    pub(crate) fn of_test(name: &str) -> Random {
        let seed = std::env::var("SEED").map_or_else(
            |_| u64::from(std::process::id()) << 20,
            |seed| seed.parse().expect("SEED is a number"),
        );
        println!("{name}: SEED={seed}");
        Random(seed)
    }

    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
