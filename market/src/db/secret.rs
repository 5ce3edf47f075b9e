//! Keys that all API instances share and that need not be configured. Writer: the API.

use sqlx::postgres::PgConnection;

/// The key that signs realtime tokens: `fresh` if there was none.
pub async fn realtime(db: &mut PgConnection, fresh: [u8; 32]) -> Result<Vec<u8>, sqlx::Error> {
    sqlx::query!(
        "insert into api_secret (name, secret) values ('realtime', $1) on conflict (name) do nothing",
        &fresh[..]
    )
    .execute(&mut *db)
    .await?;
    sqlx::query_scalar!("select secret from api_secret where name = 'realtime'").fetch_one(db).await
}
