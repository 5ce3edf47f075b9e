//! Child processes that never outlive us, are stopped by process id, and say why they ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end after it was asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A user to run a server as, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The id of its primary group.
    pub gid: u32,
}

/// What to start, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    log: PathBuf,
    stop: Signal,
    user: Option<User>,
}

impl Launch {
    /// Starts `program`, called `name` in messages, with its output appended to the file `log`.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            log: log.into(),
            stop: Signal::TERM,
            user: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        for (key, value) in vars {
            self = self.env(key, value);
        }
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The signal that asks the process to end, `SIGTERM` unless said otherwise. It is also sent when we die.
    #[must_use]
    pub fn stop_with(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// Runs as another user; only root can.
    #[must_use]
    pub fn run_as(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// The command line, behind `setpriv` where that exists (any Linux): it keeps the process id and sets the signal that
    /// the kernel sends when we die. Doing so between fork and exec here would need unsafe code.
    fn command(&self) -> Command {
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = if setpriv.is_file() {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal_name(self.stop), "--"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.args).envs(self.env.iter().map(|(key, value)| (key, value))).stdin(Stdio::null());
        // Ctrl-C in a terminal goes to its whole foreground group; we want to stop our children ourselves, in order.
        command.process_group(0);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub fn spawn(self) -> anyhow::Result<Process> {
        let log = open_log(&self.log)?;
        let log_start = log.metadata().map_or(0, |meta| meta.len());
        let mut command = self.command();
        command.stdout(log.try_clone().context("sharing the log file")?).stderr(log);
        let child = spawn_from_lasting_thread(command)
            .with_context(|| format!("starting {} ({})", self.name, self.program.display()))?;
        Ok(Process { launch: self, child, log_start })
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("opening {}", path.display()))
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::INT => "INT",
        Signal::KILL => "KILL",
        _ => "TERM",
    }
}

type SpawnRequest = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Spawns from one thread that lasts as long as the process. The kernel's parent-death signal follows the *thread* that
/// forked: a server started by a test's own thread would die with that test, while others still use it.
fn spawn_from_lasting_thread(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<SpawnRequest>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = mpsc::channel::<SpawnRequest>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(requests)
    });
    let (answer, reply) = mpsc::channel();
    spawner
        .lock()
        .map_err(|_| anyhow!("the spawning thread panicked"))?
        .send((command, answer))
        .context("the spawning thread is gone")?;
    Ok(reply.recv().context("the spawning thread is gone")??)
}

/// A running child process. Dropping it stops it.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Child,
    log_start: u64,
}

impl Process {
    /// The name it was launched under.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file its output goes to.
    pub fn log_path(&self) -> &Path {
        &self.launch.log
    }

    /// How it ended, or `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written since it was started.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.launch.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// The last lines it has written, for error messages.
    pub fn log_tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Polls `ready` until it says yes.
    ///
    /// # Errors
    /// With the tail of the log, when the process ends first or `within` has passed.
    pub async fn wait_until(
        &mut self,
        within: Duration,
        mut ready: impl AsyncFnMut(&mut Self) -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if ready(self).await {
                return Ok(());
            }
            if let Some(status) = self.exit_status() {
                bail!("{} ended ({status}) before it was ready; its log says:\n{}", self.name(), self.log_tail());
            }
            if started.elapsed() > within {
                bail!(
                    "{} was not ready within {} s; its log says:\n{}",
                    self.name(),
                    within.as_secs(),
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `kill -9`, and waits for the end. Nothing of the process gets to run.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_running() {
            bail!("{} is not running", self.name());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("process id out of range")?;
        kill_process(pid, signal).with_context(|| format!("sending a signal to {}", self.name()))
    }

    /// Asks it to end, waits for that, and kills it when it does not in time. Returns whether it ended by itself.
    pub fn stop(&mut self) -> bool {
        if self.signal(self.launch.stop).is_ok() {
            let asked = Instant::now();
            while asked.elapsed() < GRACE {
                if !self.is_running() {
                    return true;
                }
                std::thread::sleep(POLL);
            }
        }
        let ended = !self.is_running();
        self.kill();
        ended
    }

    /// Starts the same thing again after it ended.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            bail!("{} is still running", self.name());
        }
        *self = self.launch.clone().spawn()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Process {
        Launch::new("shell", "/bin/sh", dir.join("log")).args(["-c", script]).spawn().unwrap()
    }

    #[tokio::test]
    async fn waits_for_readiness_and_stops_by_signal() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done");
        process.wait_until(Duration::from_secs(10), async |p| p.output().contains("up")).await.unwrap();
        assert!(process.stop(), "it ends by itself when asked");
        assert!(process.output().contains("bye"));
    }

    #[tokio::test]
    async fn an_early_end_is_reported_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo no such luck >&2; exit 3");
        let error = process.wait_until(Duration::from_secs(10), async |_| false).await.unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn a_killed_process_restarts_with_the_same_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo started; sleep 100");
        process.wait_until(Duration::from_secs(10), async |p| p.output().contains("started")).await.unwrap();
        let first = process.pid();
        assert!(process.restart().is_err(), "a running process is not started twice");
        process.kill();
        process.restart().unwrap();
        process.wait_until(Duration::from_secs(10), async |p| p.output().contains("started")).await.unwrap();
        assert_ne!(process.pid(), first);
        assert!(process.is_running());
    }

    #[test]
    fn a_process_outlives_the_thread_that_started_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let mut process = std::thread::spawn(move || shell(&path, "sleep 100")).join().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(process.is_running());
    }
}
