//! Keys: the values that determine all random numbers.

/// A key of the random number generator: two 32-bit words.
///
/// Keys are plain values and can be copied. Using a key twice gives the same numbers twice: good
/// for repeating a run, but usually a mistake (two layers with equal weights). So
/// [`split`](Key::split) first and use each half once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The key of a seed, `jax.random.PRNGKey(seed)`.
    ///
    /// Only the low 32 bits of the seed count, as in JAX, whose integers have 32 bits by default.
    pub fn new(seed: i64) -> Self {
        Key([0, seed as u32])
    }

    /// The key with these two words, the inverse of [`words`](Key::words).
    pub fn from_words(words: [u32; 2]) -> Self {
        Key(words)
    }

    /// The two words of the key.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Two new keys, `jax.random.split(key)`. The old one should not be used again.
    pub fn split(self) -> (Key, Key) {
        (self.child(0), self.child(1))
    }

    /// `n` new keys, `jax.random.split(key, n)`. A larger `n` only adds keys at the end.
    ///
    /// # Panics
    /// If `n` keys of 8 bytes each do not fit in memory.
    pub fn split_n(self, n: usize) -> Vec<Key> {
        (0..n as u64).map(|i| self.child(i)).collect()
    }

    /// A new key derived from this one and a number, `jax.random.fold_in(key, data)`.
    pub fn fold_in(self, data: u32) -> Key {
        self.child(u64::from(data))
    }

    fn child(self, index: u64) -> Key {
        Key(threefry2x32(self.0, index))
    }

    /// The 32 random bits at a flat index, `jax.random.bits(key, shape).flatten()[index]`.
    #[inline(always)]
    pub fn bits_at(self, index: usize) -> u32 {
        let [a, b] = threefry2x32(self.0, index as u64);
        a ^ b
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}, {})", self.0[0], self.0[1])
    }
}

/// The Threefry-2x32 block cipher with 20 rounds: encrypts the 64-bit counter with the key.
#[inline(always)]
fn threefry2x32(key: [u32; 2], counter: u64) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut x0 = ((counter >> 32) as u32).wrapping_add(schedule[0]);
    let mut x1 = (counter as u32).wrapping_add(schedule[1]);
    for group in 0..5 {
        for rotation in ROTATIONS[group % 2] {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(rotation) ^ x0;
        }
        x0 = x0.wrapping_add(schedule[(group + 1) % 3]);
        x1 = x1.wrapping_add(schedule[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [x0, x1]
}
