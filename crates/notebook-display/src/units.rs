//! Lengths and colors, and their SVG form.
//!
//! Lengths are tenths of a CSS pixel because plotters' coordinates are integers.

/// One CSS pixel.
pub(crate) const PX: i32 = 10;

/// An opaque color: red, green, blue.
pub(crate) type Color = (u8, u8, u8);

/// A length as CSS pixels: `123`, `12.3`.
pub(crate) struct Px(pub i32);

impl std::fmt::Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.0) / f64::from(PX))
    }
}

/// A color as `#rrggbb` or `#rgb`.
pub(crate) struct Hex(pub Color);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (red, green, blue) = self.0;
        if [red, green, blue].iter().all(|channel| channel % 17 == 0) {
            return write!(f, "#{:x}{:x}{:x}", red / 17, green / 17, blue / 17);
        }
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}
