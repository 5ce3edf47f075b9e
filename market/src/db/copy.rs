//! Many rows at once, by `COPY … from stdin (format binary)`: a row costs Postgres half of what it does in an `insert`, since
//! no parameter is made into an array and taken out of it again.
//!
//! Values are encoded by sqlx itself, so a column lies there as any query would have written it. Rows go out while others are
//! still encoded, so that Postgres and this process work at the same time, and memory does not grow with their number.

use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgCopyIn};
use sqlx::{Encode, Postgres};

/// "PGCOPY", a signature that shows damage in transfer, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of the number of columns of a row, after the last row.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// In place of the length of a value.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// How much is kept before it is sent.
const MESSAGE_BYTES: usize = 1 << 16;

/// Rows on their way into a table. Not finishing it fails the transaction.
pub(super) struct Copy<'c> {
    sink: PgCopyIn<&'c mut PgConnection>,
    rows: u64,
    buffer: PgArgumentBuffer,
}

impl<'c> Copy<'c> {
    /// Begins. `statement` is `copy TABLE (COLUMNS) from stdin (format binary)`.
    pub(super) async fn begin(db: &'c mut PgConnection, statement: &'static str) -> Result<Self, sqlx::Error> {
        let sink = db.copy_in_raw(statement).await?;
        let mut buffer = PgArgumentBuffer::default();
        buffer.reserve(2 * MESSAGE_BYTES);
        buffer.extend_from_slice(HEADER);
        Ok(Self { sink, rows: 0, buffer })
    }

    /// Begins a row of `columns` values, which are to be [put](Self::put) then. Use [`copy_row!`].
    pub(super) async fn begin_row(&mut self, columns: i16) -> Result<(), sqlx::Error> {
        if self.buffer.len() >= MESSAGE_BYTES {
            self.flush().await?;
        }
        self.rows += 1;
        self.buffer.extend_from_slice(&columns.to_be_bytes());
        Ok(())
    }

    /// The next value of the row. Of the column's own type: nothing is converted.
    pub(super) fn put<'v>(&mut self, value: impl Encode<'v, Postgres>) -> Result<(), sqlx::Error> {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&NULL);
        if value.encode(&mut self.buffer).map_err(sqlx::Error::Encode)?.is_null() {
            return Ok(());
        }
        let length = i32::try_from(self.buffer.len() - at - NULL.len());
        let length = length.map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        self.buffer[at..at + NULL.len()].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Sends what there is.
    pub(super) async fn flush(&mut self) -> Result<(), sqlx::Error> {
        self.sink.send(self.buffer.as_slice()).await?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the copy without a row, and fails the transaction.
    pub(super) async fn abort(self) -> Result<(), sqlx::Error> {
        self.sink.abort("given up").await
    }

    /// Ends the copy; all rows are in the table then.
    pub(super) async fn finish(mut self) -> Result<(), sqlx::Error> {
        self.buffer.extend_from_slice(&TRAILER);
        self.flush().await?;
        let copied = self.sink.finish().await?;
        if copied == self.rows {
            return Ok(());
        }
        Err(sqlx::Error::Protocol(format!("{copied} of {} rows were copied", self.rows)))
    }
}

/// Adds a row of these values, or returns the error from the function around it.
macro_rules! copy_row {
    ($copy:expr, $($value:expr),+ $(,)?) => {{
        const COLUMNS: i16 = 0 $(+ { let _ = stringify!($value); 1 })+;
        $copy.begin_row(COLUMNS).await?;
        $($copy.put($value)?;)+
    }};
}
pub(super) use copy_row;
