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
        let [bits] = self.bits_from(index);
        bits
    }

    /// The random bits at a flat index and at those after it.
    #[inline(always)]
    pub fn bits_from<const N: usize>(self, first: usize) -> [u32; N] {
        let [a, b] = threefry2x32_block::<N>(self.0, first as u64);
        std::array::from_fn(|lane| a[lane] ^ b[lane])
    }
}

/// `[1797259609 2579123966]`, as JAX prints a key.
impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} {}]", self.0[0], self.0[1])
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}, {})", self.0[0], self.0[1])
    }
}

/// The Threefry-2x32 block cipher with 20 rounds: encrypts the 64-bit counter with the key.
fn threefry2x32(key: [u32; 2], counter: u64) -> [u32; 2] {
    let [[x0], [x1]] = threefry2x32_block(key, counter);
    [x0, x1]
}

/// The same for a counter and those after it. Each round is a loop over all of them, which
/// compilers turn into vector instructions.
#[inline(always)]
fn threefry2x32_block<const N: usize>(key: [u32; 2], first: u64) -> [[u32; N]; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let (mut x0, mut x1) = ([0; N], [0; N]);
    for lane in 0..N {
        let counter = first.wrapping_add(lane as u64);
        x0[lane] = ((counter >> 32) as u32).wrapping_add(schedule[0]);
        x1[lane] = (counter as u32).wrapping_add(schedule[1]);
    }
    for group in 0..5 {
        for rotation in ROTATIONS[group % 2] {
            for lane in 0..N {
                x0[lane] = x0[lane].wrapping_add(x1[lane]);
                x1[lane] = x1[lane].rotate_left(rotation) ^ x0[lane];
            }
        }
        let (a, b) = (schedule[(group + 1) % 3], schedule[(group + 2) % 3]);
        for lane in 0..N {
            x0[lane] = x0[lane].wrapping_add(a);
            x1[lane] = x1[lane].wrapping_add(b).wrapping_add(group as u32 + 1);
        }
    }
    [x0, x1]
}
