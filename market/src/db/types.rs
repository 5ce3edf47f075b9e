//! How the chain's types lie in Postgres. Queries name them where a column is read (`node as "node: DbAddress"`) and pass
//! them with `as _` where one is written: Postgres describes a column of a domain by its base type.

use alloy::primitives::{Address, B256, I256, Sign, U256};
use bigdecimal::BigDecimal;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type, encode::IsNull, error::BoxDynError};

use super::numeric;
use crate::Amount;

/// An [`Address`] as `BYTEA` of 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbAddress(pub Address);

/// A [`B256`] as `BYTEA` of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbHash(pub B256);

/// What is moved into an account or, below zero, out of it, as `NUMERIC(79, 0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbSigned(pub I256);

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
macro_rules! numeric {
    ($db:ident) => {
        impl Type<Postgres> for $db {
            fn type_info() -> PgTypeInfo {
                <BigDecimal as Type<Postgres>>::type_info()
            }
            fn compatible(ty: &PgTypeInfo) -> bool {
                <BigDecimal as Type<Postgres>>::compatible(ty)
            }
        }
        impl PgHasArrayType for $db {
            fn array_type_info() -> PgTypeInfo {
                <BigDecimal as PgHasArrayType>::array_type_info()
            }
        }
    };
}

numeric!(DbAmount);
numeric!(DbSigned);

impl Encode<'_, Postgres> for DbAmount {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        numeric::write(false, self.0.0, buf);
        Ok(IsNull::No)
    }
}
impl<'r> Decode<'r, Postgres> for DbAmount {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match numeric::decode(&value)? {
            (false, amount) => Ok(Self(Amount(amount))),
            (true, amount) => Err(format!("an amount below zero: -{amount}").into()),
        }
    }
}
impl Encode<'_, Postgres> for DbSigned {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let (sign, magnitude) = self.0.into_sign_and_abs();
        numeric::write(sign.is_negative(), magnitude, buf);
        Ok(IsNull::No)
    }
}
impl<'r> Decode<'r, Postgres> for DbSigned {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let (negative, magnitude) = numeric::decode(&value)?;
        let sign = if negative { Sign::Negative } else { Sign::Positive };
        let amount = I256::checked_from_sign_and_abs(sign, magnitude);
        Ok(Self(amount.ok_or_else(|| format!("{magnitude} exceeds 255 bits and a sign"))?))
    }
}
