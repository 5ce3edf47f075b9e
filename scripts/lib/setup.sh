# Sourced by up, deploy, test, prove, lint-contracts, coverage and sqlx-prepare: finds or installs what they need. Sets ROOT, TARGET and DEVNET.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
FORGE=$ROOT/scripts/lib/forge
export LITTORAL_ROOT=$ROOT
# Queries are checked against the committed cache: a DATABASE_URL meant for running need not have our tables yet.
export SQLX_OFFLINE=true
[[ -d $HOME/.cargo/bin ]] && PATH=$PATH:$HOME/.cargo/bin

say() { if [[ -t 1 ]]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}
has() { command -v "$1" >/dev/null; }

# has_server NAME: Debian keeps PostgreSQL's servers out of PATH.
has_server() {
  has "$1" || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

# as_root COMMAND…: fails where we neither are root nor may become it.
as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif has sudo && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    sudo "$@"
  else
    return 1
  fi
}

# The system's packages: installed where we may, otherwise named precisely.
install_packages() {
  local missing=()
  { has_server initdb && has_server postgres; } || missing+=(postgresql)
  { has psql && has createdb; } || missing+=(postgresql-client)
  has redis-server || missing+=(redis-server)
  # Rust links with it, and two dependencies have C in them.
  { has cc && echo 'int main(void){return 0;}' | cc -x c -o /dev/null - 2>/dev/null; } || missing+=(gcc libc6-dev)
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

apt_install() {
  local command="apt-get install -y --no-install-recommends $*"
  has apt-get || die "please install what Debian calls: $*"
  say "Installing $*"
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -q && $command" ||
    die "please install what is missing: sudo $command"
}

check_toolchains() {
  has cargo || die "please install Rust (https://rustup.rs), version $(rust_version) or later"
  has node && has npm || die "please install Node.js 20 or later, with npm"
  local have
  have=$(rustc --version | cut -d' ' -f2)
  [[ $(printf '%s\n' "$(rust_version)" "$have" | sort -V | head -1) == "$(rust_version)" ]] ||
    die "Rust $have is too old: please install $(rust_version) or later (rustup update stable)"
  [[ $(node -p 'process.versions.node.split(".")[0]') -ge 20 ]] || die "Node.js $(node --version) is too old: please install 20 or later"
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

# Foundry, the Solidity compiler and the Solidity libraries, as locked. No package's own scripts are run.
install_npm() {
  [[ $ROOT/node_modules/.package-lock.json -nt $ROOT/package-lock.json ]] && return
  say "Installing Foundry, solc and OpenZeppelin (npm ci)"
  (cd "$ROOT" && npm ci --ignore-scripts --no-audit --no-fund)
  touch "$ROOT/node_modules/.package-lock.json"
}

# install_venv [NAME REQUIREMENTS WHAT]: what is pinned there, in a Python of its own; by default halmos, its solvers and slither.
install_venv() {
  local wanted=$ROOT/scripts/lib/${2:-requirements.txt}
  VENV=$ROOT/.littoral/${1:-venv}
  [[ $VENV/.installed -nt $wanted ]] && return
  # Debian leaves ensurepip to python3-venv.
  python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$(python3 --version) is too old for the prover: please install 3.11 or later"
  say "Installing ${3:-the prover and slither} (pip)"
  python3 -m venv "$VENV" || die "python3 makes no environment in $VENV: please install what Debian calls python3-venv"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" ||
    die "pip cannot install ${wanted#"$ROOT"/}, see above. It needs PyPI, or a mirror of it (PIP_INDEX_URL), or, without either," \
      "$VENV with what that file names in it, and then: touch $VENV/.installed"
  touch "$VENV/.installed"
}

setup() {
  check_toolchains
  install_packages
  install_npm
  locate
}

# Where cargo puts what it builds.
locate() {
  TARGET=$(cd "$ROOT" && cargo metadata --format-version 1 --no-deps --locked |
    node -p 'JSON.parse(require("fs").readFileSync(0)).target_directory')
  DEVNET=$TARGET/debug/littoral-devnet
}
