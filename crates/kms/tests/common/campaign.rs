//! How often and when something is killed: few times in CI, as often as one likes by hand.

/// A small generator whose sequence never changes, so that a failure can be repeated.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }

    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.roll(list.len())]
    }
}

/// Deaths and the moments at which they come: `ENCLOS_KMS_KILLS` of them, after what `ENCLOS_KMS_SEED` says.
pub(crate) struct Campaign {
    pub(crate) kills: usize,
    dice: Dice,
}

impl Campaign {
    #[expect(clippy::print_stderr, reason = "a failure is repeated with it")]
    pub(crate) fn new(kills: usize) -> Self {
        let kills = number("ENCLOS_KMS_KILLS").map_or(kills, |kills| kills.try_into().unwrap());
        let seed = number("ENCLOS_KMS_SEED").unwrap_or(1);
        eprintln!("ENCLOS_KMS_KILLS={kills} ENCLOS_KMS_SEED={seed}");
        // The generator never leaves zero.
        let dice = Dice(seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { kills, dice }
    }

    /// So many more answers are waited for before the next death.
    pub(crate) fn answers(&mut self) -> usize {
        1 + self.dice.roll(5)
    }

    /// And so long after them.
    pub(crate) fn delay(&mut self) -> std::time::Duration {
        let micros = self.dice.roll(60_000);
        std::time::Duration::from_micros(u64::try_from(micros).unwrap())
    }
}

/// A number in the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap())
}
