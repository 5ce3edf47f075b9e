//! NUMERIC in Postgres' binary form, straight from and to 256-bit integers: what goes by way of a decimal library takes
//! longer than all the rest of a row.
//!
//! The form (`numeric_send` in `numeric.c`), each field of two bytes: how many digits of base 10,000 follow, the power of 10,000
//! of the first one, the sign, how many decimals to show, and the digits without the zeros at either end.

use alloy::primitives::U256;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgValueFormat, PgValueRef};

const NEGATIVE: u16 = 0x4000;
/// Digits of base 10,000 in 2^256 - 1.
const DIGITS: usize = 20;
/// Four digits.
const CHUNK: U256 = U256::from_limbs([10_000_000_000_000_000, 0, 0, 0]);

/// Appends an integer.
pub(super) fn write(negative: bool, magnitude: U256, out: &mut Vec<u8>) {
    // The least one first.
    let mut digits = [0_u16; DIGITS];
    let mut chunks = digits.chunks_exact_mut(4);
    let mut rest = magnitude;
    while let (false, Some(four)) = (rest.is_zero(), chunks.next()) {
        let (quotient, remainder) = rest.div_rem(CHUNK);
        let mut chunk = remainder.as_limbs()[0];
        for digit in four {
            *digit = u16::try_from(chunk % 10_000).unwrap_or_default();
            chunk /= 10_000;
        }
        rest = quotient;
    }
    let is_digit = |digit: &u16| *digit != 0;
    let end = digits.iter().rposition(is_digit).map_or(0, |last| last + 1);
    let start = digits.iter().position(is_digit).unwrap_or(0);
    let small = |count: usize| u16::try_from(count).unwrap_or_default();
    let sign = if negative { NEGATIVE } else { 0 };
    for field in [small(end - start), small(end.saturating_sub(1)), sign, 0] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    for digit in digits[start..end].iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// Reads an integer: whether it is negative, and its magnitude. What it has behind the point is dropped.
pub(super) fn read(bytes: &[u8]) -> Result<(bool, U256), BoxDynError> {
    let (fields, rest) = bytes.as_chunks();
    let mut fields = fields.iter().copied().map(u16::from_be_bytes);
    let (Some(_), Some(weight), Some(sign), Some(_), []) =
        (fields.next(), fields.next(), fields.next(), fields.next(), rest)
    else {
        return Err("a NUMERIC that is cut off".into());
    };
    if sign != 0 && sign != NEGATIVE {
        return Err("a NUMERIC that is no finite number".into());
    }
    // A weight below zero is that of a fraction.
    let integers = if weight >= 0x8000 { 0 } else { usize::from(weight) + 1 };
    let mut digits = fields.chain(std::iter::repeat(0)).take(integers);
    let add = |sum: U256, digit: u16| sum.checked_mul(U256::from(10_000))?.checked_add(U256::from(digit));
    let magnitude = digits.try_fold(U256::ZERO, add).ok_or("a NUMERIC that exceeds 256 bits")?;
    Ok((sign == NEGATIVE && !magnitude.is_zero(), magnitude))
}

/// As [`read`], of a column in whichever form it came.
pub(super) fn decode(value: &PgValueRef<'_>) -> Result<(bool, U256), BoxDynError> {
    match value.format() {
        PgValueFormat::Binary => read(value.as_bytes()?),
        PgValueFormat::Text => parse(value.as_str()?),
    }
}

fn parse(text: &str) -> Result<(bool, U256), BoxDynError> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let integer = digits.split_once('.').map_or(digits, |(integer, _)| integer);
    let magnitude = U256::from_str_radix(integer, 10)?;
    Ok((negative && !magnitude.is_zero(), magnitude))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bigdecimal::BigDecimal;
    use proptest::prelude::*;
    use sqlx::postgres::PgArgumentBuffer;
    use sqlx::{Encode, Postgres};

    /// As sqlx itself writes it.
    fn by_way_of_decimals(text: &str) -> Vec<u8> {
        let mut buffer = PgArgumentBuffer::default();
        let decimal: BigDecimal = text.parse().unwrap();
        assert!(!<BigDecimal as Encode<Postgres>>::encode(decimal, &mut buffer).unwrap().is_null());
        buffer.to_vec()
    }

    fn written(negative: bool, magnitude: U256) -> Vec<u8> {
        let mut out = Vec::new();
        write(negative, magnitude, &mut out);
        out
    }

    #[test]
    fn numbers_at_the_ends_of_a_digit_are_written_as_a_decimal_library_does() {
        for exponent in 0..78_u64 {
            let power = U256::from(10).pow(U256::from(exponent));
            for number in [power, power - U256::ONE, power + U256::ONE, U256::MAX - power, U256::MAX / power] {
                assert_eq!(written(false, number), by_way_of_decimals(&number.to_string()), "{number}");
                assert_eq!(read(&written(true, number)).unwrap(), (!number.is_zero(), number));
            }
        }
    }

    #[test]
    fn what_is_no_integer_of_256_bits_is_refused_and_fractions_are_dropped() {
        assert!(read(&[]).is_err() && read(&[0; 7]).is_err() && read(&[0; 9]).is_err());
        let nan = [[0, 0], [0, 0], [0xc0, 0], [0, 0]].concat();
        assert!(read(&nan).unwrap_err().to_string().contains("finite"));
        let over = by_way_of_decimals("115792089237316195423570985008687907853269984665640564039457584007913129639936");
        assert!(read(&over).unwrap_err().to_string().contains("256 bits"));
        assert_eq!(read(&by_way_of_decimals("-12345.678")).unwrap(), (true, U256::from(12345)));
        assert_eq!(read(&by_way_of_decimals("0.00005")).unwrap(), (false, U256::ZERO));
        assert_eq!(read(&by_way_of_decimals("-0.5")).unwrap(), (false, U256::ZERO));
    }

    #[test]
    fn text_is_read_as_the_binary_form_is() {
        for (text, value) in [("0", (false, 0)), ("-7", (true, 7)), ("70000.9", (false, 70_000)), ("-0.5", (false, 0))]
        {
            assert_eq!(parse(text).unwrap(), (value.0, U256::from(value.1)), "{text}");
        }
        assert!(parse("NaN").is_err());
    }

    proptest! {
        #[test]
        fn any_integer_is_written_as_a_decimal_library_does_and_read_again(limbs: [u64; 4], kept in 0..4_usize, negative: bool) {
            let mut limbs = limbs;
            limbs[kept..].fill(0);
            let number = U256::from_limbs(limbs);
            let sign = if negative && !number.is_zero() { "-" } else { "" };
            let bytes = written(!sign.is_empty(), number);
            prop_assert_eq!(&bytes, &by_way_of_decimals(&format!("{sign}{number}")));
            prop_assert_eq!(read(&bytes).unwrap(), (!sign.is_empty(), number));
        }
    }
}
