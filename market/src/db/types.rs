//! How the chain's types lie in Postgres. Queries name them where a column is read (`node as "node: DbAddress"`) and pass
//! them with `as _` where one is written: Postgres describes a column of a domain by its base type.

use std::str::FromStr;

use alloy::primitives::{Address, B256, U256};
use bigdecimal::{BigDecimal, num_bigint::BigInt};
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type, encode::IsNull, error::BoxDynError};

use crate::Amount;

/// An [`Address`] as `BYTEA` of 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbAddress(pub Address);

/// A [`B256`] as `BYTEA` of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbHash(pub B256);

/// An [`Amount`] as `NUMERIC(78, 0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbAmount(pub Amount);

macro_rules! fixed_bytes {
    ($db:ident, $inner:ty) => {
        impl From<$inner> for $db {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
        impl From<$db> for $inner {
            fn from(value: $db) -> Self {
                value.0
            }
        }
        impl Type<Postgres> for $db {
            fn type_info() -> PgTypeInfo {
                <Vec<u8> as Type<Postgres>>::type_info()
            }
            fn compatible(ty: &PgTypeInfo) -> bool {
                <Vec<u8> as Type<Postgres>>::compatible(ty)
            }
        }
        impl PgHasArrayType for $db {
            fn array_type_info() -> PgTypeInfo {
                <Vec<u8> as PgHasArrayType>::array_type_info()
            }
        }
        impl Encode<'_, Postgres> for $db {
            fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <&[u8] as Encode<Postgres>>::encode(self.0.as_slice(), buf)
            }
        }
        impl<'r> Decode<'r, Postgres> for $db {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                let bytes = <&[u8] as Decode<Postgres>>::decode(value)?;
                Ok(Self(<$inner>::try_from(bytes)?))
            }
        }
    };
}

fixed_bytes!(DbAddress, Address);
fixed_bytes!(DbHash, B256);

impl From<Amount> for DbAmount {
    fn from(value: Amount) -> Self {
        Self(value)
    }
}
impl From<U256> for DbAmount {
    fn from(value: U256) -> Self {
        Self(Amount(value))
    }
}
impl From<u128> for DbAmount {
    fn from(value: u128) -> Self {
        Self(Amount(U256::from(value)))
    }
}
impl DbAmount {
    /// A number that the contracts keep in 64 bits, such as a nonce.
    pub(in crate::db) fn to_u64(self) -> Result<u64, sqlx::Error> {
        u64::try_from(self.0.0).map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }
}
impl From<DbAmount> for Amount {
    fn from(value: DbAmount) -> Self {
        value.0
    }
}
impl Type<Postgres> for DbAmount {
    fn type_info() -> PgTypeInfo {
        <BigDecimal as Type<Postgres>>::type_info()
    }
    fn compatible(ty: &PgTypeInfo) -> bool {
        <BigDecimal as Type<Postgres>>::compatible(ty)
    }
}
impl PgHasArrayType for DbAmount {
    fn array_type_info() -> PgTypeInfo {
        <BigDecimal as PgHasArrayType>::array_type_info()
    }
}
impl Encode<'_, Postgres> for DbAmount {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let digits = BigInt::from_bytes_be(bigdecimal::num_bigint::Sign::Plus, &self.0.0.to_be_bytes::<32>());
        <BigDecimal as Encode<Postgres>>::encode(BigDecimal::from(digits), buf)
    }
}
impl<'r> Decode<'r, Postgres> for DbAmount {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let decimal = <BigDecimal as Decode<Postgres>>::decode(value)?;
        // The domain's check keeps it an integer in range; to_plain_string never uses an exponent.
        Ok(Self(Amount(U256::from_str(&decimal.with_scale(0).to_plain_string())?)))
    }
}
