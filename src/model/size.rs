//! Sizes with units: `480GB`, `64 MiB`, `1.5TiB`.
//!
//! Used by the spec reader, the disk hints and everything that shows a number of bytes.

/// Parses `number[unit]` into bytes. Units are B, kB/MB/GB/TB/PB (powers of 1000) and
/// KiB/MiB/GiB/TiB/PiB (powers of 1024), in any case, perhaps after a space. At most three
/// decimals.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write for example 480GB or 64MiB");
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "pb" => 1000_u64.pow(5),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "pib" => 1 << 50,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    // At most 2^50 × 999 / 1000, which cannot overflow.
    let part = u128::from(thousandths) * u128::from(scale) / 1000;
    let bytes = u128::from(whole) * u128::from(scale) + part;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is more bytes than 64 bits can count"))
}

/// Formats a number of bytes for a reader: `64.0 MiB`, `512 B`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 5] =
        [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS.iter().find(|(_, scale)| bytes >= *scale).map_or_else(
        || format!("{bytes} B"),
        |(unit, scale)| {
            let tenths = u128::from(bytes) * 10 / u128::from(*scale);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        },
    )
}

/// Formats two numbers of bytes for comparison, with the exact numbers if they would look alike.
pub fn show_apart(one: u64, other: u64) -> [String; 2] {
    let larger = one.max(other);
    let scale = (0..=5).rev().map(|power| 1024_u64.pow(power)).find(|scale| larger >= *scale);
    // One decimal of the unit is shown. Less than a KiB is exact anyway.
    let is_close = scale.is_some_and(|scale| scale > 1 && one.abs_diff(other) <= scale / 10);
    [one, other].map(|bytes| match show_bytes(bytes) {
        shown if is_close => format!("{shown} ({bytes} bytes)"),
        shown => shown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("480GB", 480_000_000_000),
            ("64 MiB", 64 << 20),
            ("1.5TiB", 3 << 39),
            ("2gib", 2 << 30),
            ("0.001kB", 1),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GB", "-1GB", "1.2345GB", "1,5GB", "12XB", ".5GB", "1..5GB", "99999999PiB"]
        {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_show_one_decimal_and_never_more_than_they_are() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (u64::MAX, "16383.9 PiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
        ] {
            assert_eq!(show_bytes(bytes), text);
        }
    }

    /// Invariant (disk): The smallest disk named as enough is enough; impossible images are refused
    /// before power-on.
    #[test]
    fn sizes_that_differ_by_less_than_is_shown_are_shown_in_bytes_too() {
        for (one, other, shown) in [
            (
                (64 << 20) - 512,
                64 << 20,
                ["63.9 MiB (67108352 bytes)", "64.0 MiB (67108864 bytes)"],
            ),
            (
                1 << 40,
                (1 << 40) + 4096,
                ["1.0 TiB (1099511627776 bytes)", "1.0 TiB (1099511631872 bytes)"],
            ),
            (1 << 30, 2 << 30, ["1.0 GiB", "2.0 GiB"]),
            (1000, 1001, ["1000 B", "1001 B"]),
            (0, u64::MAX, ["0 B", "16383.9 PiB"]),
        ] {
            assert_eq!(show_apart(one, other), shown);
        }
    }
}
