//! A private PostgreSQL server, and a database of its own for each test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::Rng;
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use url::Url;

use crate::paths::{program, remove_tree, scratch_dir};
use crate::ports::free_port_or;
use crate::process::{Launch, Process, User};

const PACKAGE: &str = "postgresql";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Where data go that their server could not reach in the project, and the file in there that says whose they are.
const ELSEWHERE: &str = "/var/tmp";
const WHOSE: &str = "directory";
/// How often another port is tried when the one that was free has been taken meanwhile.
const ATTEMPTS: usize = 10;
/// What a server says in whose data directory another still is.
const OUTLIVED: &str = "pre-existing shared memory block";
const OUTLIVED_PAUSE: Duration = Duration::from_millis(100);
/// Names the server that a whole test run shares (`scripts/test` starts it).
pub const SHARED_URL: &str = "LITTORAL_TEST_POSTGRES_URL";

/// A running server on 127.0.0.1. Dropping it shuts it down.
///
/// PostgreSQL refuses to run as root, so root runs it as the user `postgres`. Where that user may not enter the
/// directory (a clone under `/root`), the data lies in `/var/tmp/littoral-<hash>` and `data` is a link to it.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    url: Url,
    scratch: Option<TempDir>,
}

impl Postgres {
    /// Starts a server whose data stay in `dir`; a new directory is initialised, with a generated password. It listens on
    /// the port `preferred`, or on another one where that is taken.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or the server does not come up; with the tail of its log.
    pub async fn start(dir: &Path, preferred: Option<u16>) -> anyhow::Result<Self> {
        Self::launch(dir, preferred, true).await
    }

    /// Starts a server that forgets everything when dropped. It does not wait for the disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn temporary() -> anyhow::Result<Self> {
        let scratch = scratch_dir("postgres")?;
        let mut server = Self::launch(scratch.path(), None, false).await?;
        server.scratch = Some(scratch);
        Ok(server)
    }

    /// The URL of the maintenance database of the server that this whole test run shares: the one `scripts/test`
    /// started, or else one that is started now and lives as long as this process.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn shared() -> anyhow::Result<Url> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        if let Ok(url) = std::env::var(SHARED_URL) {
            return Url::parse(&url).with_context(|| format!("{SHARED_URL} is not a URL"));
        }
        Ok(SHARED.get_or_try_init(Self::temporary).await?.url.clone())
    }

    async fn launch(dir: &Path, preferred: Option<u16>, durable: bool) -> anyhow::Result<Self> {
        let cluster = Cluster::open(dir, durable)?;
        let (mut last, mut attempts, begun) = (None, 0, Instant::now());
        while attempts < ATTEMPTS {
            let chosen = free_port_or(preferred)?;
            let mut process = cluster.launch(chosen, durable)?.spawn()?;
            let pid_file = cluster.data.join("postmaster.pid");
            let ready = async |process: &mut Process| is_ready(&pid_file, process.pid());
            match process.wait_until(READY_WITHIN, ready).await {
                Ok(()) => {
                    return Ok(Self { process, url: cluster.url(chosen)?, scratch: None });
                }
                // The children of a server that was killed outlive it by moments.
                Err(_) if begun.elapsed() < READY_WITHIN && process.output().contains(OUTLIVED) => {
                    tokio::time::sleep(OUTLIVED_PAUSE).await;
                }
                Err(error) if process.output().contains("could not bind") => {
                    (last, attempts) = (Some(error), attempts + 1)
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("PostgreSQL was not started")))
    }

    /// The maintenance database's URL, with the superuser's password.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Creates a database and returns its URL.
    ///
    /// # Errors
    /// When `createdb` fails, as it does for a name that exists.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<Url> {
        create_database(&self.url, name, None).await
    }

    /// The URL of a database that exists.
    pub fn database_url(&self, name: &str) -> Url {
        database_url(&self.url, name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.process.stop();
        if let Some(scratch) = self.scratch.take() {
            remove_tree(scratch.path());
        }
    }
}

/// The server's own word for it: the eighth line of its pid file. Nobody else's server on the same port is mistaken for
/// ours.
fn is_ready(pid_file: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}

/// An initialised data directory.
struct Cluster {
    data: PathBuf,
    log: PathBuf,
    password: String,
    user: Option<User>,
}

impl Cluster {
    fn open(dir: &Path, durable: bool) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let user = if geteuid().is_root() { Some(postgres_user()?) } else { None };
        let password_file = dir.join("password");
        let data = data_dir(&dir, user)?;
        let log = dir.join("postgres.log");
        if data.join("PG_VERSION").is_file() && password_file.is_file() {
            let password = fs::read_to_string(&password_file)?;
            return Ok(Self { data, log, password, user });
        }
        let password = hex::encode(rand::rng().random::<[u8; 16]>());
        let cluster = Self { data, log, password, user };
        cluster.initialise(durable)?;
        write_private(&password_file, &cluster.password)?;
        Ok(cluster)
    }

    fn initialise(&self, durable: bool) -> anyhow::Result<()> {
        let home = self.data.parent().context("the data directory has no parent")?;
        let password_file = home.join("initdb-password");
        write_private(&password_file, &self.password)?;
        if let Some(user) = self.user {
            chown(&password_file, Some(user.uid), Some(user.gid))?;
        }
        let mut launch = Launch::new("initdb", program("initdb", PACKAGE)?, &self.log)
            .arg("--pgdata")
            .arg(&self.data)
            .args(["--username=postgres", "--encoding=UTF8", "--no-locale"])
            // Tests connect so often that a debug build's share of SCRAM would be much of what they take.
            .arg(if durable { "--auth=scram-sha-256" } else { "--auth=password" })
            .arg(format!("--pwfile={}", password_file.display()))
            .current_dir(home)
            .run_as(self.user);
        if !durable {
            launch = launch.arg("--no-sync");
        }
        let mut process = launch.spawn()?;
        let status = loop {
            match process.exit_status() {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        fs::remove_file(&password_file).ok();
        if !status.success() {
            bail!("initdb failed ({status}):\n{}", process.log_tail());
        }
        Ok(())
    }

    fn launch(&self, port: u16, durable: bool) -> anyhow::Result<Launch> {
        // A pid file that a killed server left behind would make the next one wait for a process of the same number.
        let launch = Launch::new("postgres", program("postgres", PACKAGE)?, &self.log)
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "max_connections=500", "-c", "timezone=UTC"])
            .current_dir(&self.data)
            .stop_with(Signal::INT)
            .run_as(self.user);
        let hurried = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum_naptime=5min"];
        Ok(if durable { launch } else { launch.args(hurried.iter().flat_map(|setting| ["-c", setting])) })
    }

    fn url(&self, port: u16) -> anyhow::Result<Url> {
        Ok(Url::parse(&format!("postgres://postgres:{}@127.0.0.1:{port}/postgres", self.password))?)
    }
}

/// The user that Debian's package creates.
fn postgres_user() -> anyhow::Result<User> {
    let accounts = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    accounts
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"postgres"))
        .and_then(|fields| Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? }))
        .context(
            "root cannot run PostgreSQL, and there is no user `postgres` to run it as (Debian package: postgresql)",
        )
}

/// `data` under `dir`, created for `user`, elsewhere when that user may not enter `dir`.
fn data_dir(dir: &Path, user: Option<User>) -> anyhow::Result<PathBuf> {
    let data = dir.join("data");
    let Some(user) = user else {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
        return Ok(data);
    };
    let home = if may_enter(dir, user) { dir.to_owned() } else { elsewhere(dir)? };
    let real = home.join("data");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&real)?;
    chown(&real, Some(user.uid), Some(user.gid))?;
    if home != dir && fs::read_link(&data).ok().as_ref() != Some(&real) {
        fs::remove_file(&data).ok();
        symlink(&real, &data).with_context(|| format!("linking {} to {}", data.display(), real.display()))?;
    }
    Ok(real)
}

/// Whether every directory down to `dir` lets `user` pass.
fn may_enter(dir: &Path, user: User) -> bool {
    dir.ancestors().all(|ancestor| {
        fs::metadata(ancestor).is_ok_and(|meta| {
            let needed = match (meta.uid() == user.uid, meta.gid() == user.gid) {
                (true, _) => 0o100,
                (_, true) => 0o010,
                _ => 0o001,
            };
            meta.permissions().mode() & needed != 0
        })
    })
}

/// A directory of ours in `/var/tmp`, always the same one for the same `dir`, which is named in it: once `dir` is gone, the
/// next server that needs such a directory removes this one.
fn elsewhere(dir: &Path) -> anyhow::Result<PathBuf> {
    let hash = alloy::primitives::keccak256(dir.as_os_str().as_encoded_bytes());
    let home = Path::new(ELSEWHERE).join(format!("littoral-{}", hex::encode(&hash[..8])));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&home)?;
    if !is_ours(&home) {
        bail!("{} exists and is not ours: remove it", home.display());
    }
    fs::write(home.join(WHOSE), dir.as_os_str().as_encoded_bytes())?;
    for entry in fs::read_dir(ELSEWHERE).into_iter().flatten().flatten() {
        let path = entry.path();
        let whose = fs::read(path.join(WHOSE)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let is_left = whose.is_some_and(|whose| whose.starts_with('/') && !Path::new(&whose).exists());
        if is_left && is_ours(&path) && entry.file_name().as_encoded_bytes().starts_with(b"littoral-") {
            fs::remove_dir_all(&path).ok();
        }
    }
    Ok(home)
}

/// Whether it is a directory, not a link to one, and belongs to us.
fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == geteuid().as_raw())
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::remove_file(path).ok();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A fresh, empty database on the shared server, dropped with the value. The caller applies the migrations.
#[derive(Debug)]
pub struct TestDatabase {
    server: Url,
    name: String,
    url: Url,
}

impl TestDatabase {
    /// Creates it.
    ///
    /// # Errors
    /// When the server does not start or `createdb` fails.
    pub async fn create() -> anyhow::Result<Self> {
        Self::create_like(Postgres::shared().await?, None).await
    }

    /// Creates another with all that is in this one, to which nobody may be connected.
    ///
    /// # Errors
    /// As [`Self::create`], and when someone is connected.
    pub async fn duplicate(&self) -> anyhow::Result<Self> {
        Self::create_like(self.server.clone(), Some(&self.name)).await
    }

    async fn create_like(server: Url, template: Option<&str>) -> anyhow::Result<Self> {
        let name = format!("test_{}", hex::encode(rand::rng().random::<[u8; 8]>()));
        let url = create_database(&server, &name, template).await?;
        Ok(Self { server, name, url })
    }

    /// The database's URL.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // Best effort: the server is disposable too. `--force` ends the connections of a pool that is still open.
        if let Ok(mut command) = client("dropdb", &self.server) {
            command.args(["--if-exists", "--force", &self.name]).status().ok();
        }
    }
}

async fn create_database(server: &Url, name: &str, template: Option<&str>) -> anyhow::Result<Url> {
    let mut command = client("createdb", server)?;
    command.args(template.map(|template| format!("--template={template}"))).arg(name).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        bail!("createdb {name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(database_url(server, name))
}

fn database_url(server: &Url, name: &str) -> Url {
    let mut url = server.clone();
    url.set_path(name);
    url
}

/// One of PostgreSQL's client programs, told where the server is by the environment, which `ps` does not show.
fn client(name: &str, server: &Url) -> anyhow::Result<Command> {
    let mut command = Command::new(program(name, "postgresql-client")?);
    command
        .env("PGHOST", server.host_str().unwrap_or("127.0.0.1"))
        .env("PGPORT", server.port().unwrap_or(5432).to_string())
        .env("PGUSER", server.username())
        .env("PGPASSWORD", server.password().unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}
