//! The requesters' commands, and the dispatch of all.

mod account;
mod cancel;
mod channel;
mod dispute;
mod fetch;
mod figures;
pub mod node_admin;
mod overview;
mod redrive;
mod refund;
pub mod session;
pub mod settler;
mod status;
mod submit;
mod voucher;
mod watch;

use serde_json::json;

use crate::args::{Command, KeygenArgs, NodeCommand};
use crate::context::Context;
use crate::keys;
use crate::output::fields;

/// Does what the command line says.
pub async fn run(context: &Context, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Deposit(args) => account::deposit(context, &args).await,
        Command::Thaw(args) => account::thaw(context, &args).await,
        Command::Withdraw(args) => account::withdraw(context, &args).await,
        Command::Balance(args) => account::balance(context, &args).await,
        Command::Account(args) => overview::account(context, &args).await,
        Command::Reserve(args) => channel::reserve(context, &args).await,
        Command::ThawReservation(args) => channel::thaw_reservation(context, &args).await,
        Command::Release(args) => channel::release(context, &args).await,
        Command::Submit(args) => submit::submit(context, &args).await,
        Command::Open(args) => submit::open(context, args.job).await,
        Command::Watch(args) => watch::watch(context, &args).await,
        Command::Fetch(args) => fetch::fetch(context, &args).await,
        Command::Cancel(args) => cancel::cancel(context, &args).await,
        Command::Accept(args) => dispute::accept(context, &args).await,
        Command::Dispute(args) => dispute::dispute(context, &args).await,
        Command::Resolve(args) => dispute::resolve(context, &args).await,
        Command::Voucher(command) => voucher::run(context, command).await,
        Command::Session(command) => session::run(context, command).await,
        Command::Redrive(args) => redrive::redrive(context, &args).await,
        Command::Refund(args) => refund::refund(context, &args).await,
        Command::Status(args) => status::status(context, args.job).await,
        Command::Jobs(args) => status::jobs(context, &args).await,
        Command::Stats => figures::stats(context).await,
        Command::Leaderboard(args) => figures::leaderboard(context, &args).await,
        Command::Features => figures::features(context).await,
        Command::Keygen(args) => keygen(context, &args),
        Command::Node(command) => run_node(context, command).await,
    }
}

async fn run_node(context: &Context, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Register(args) => node_admin::register(context, &args).await,
        NodeCommand::Update(args) => node_admin::update(context, args).await,
        NodeCommand::Stake(args) => node_admin::stake(context, args.amount).await,
        NodeCommand::Unbond(args) => node_admin::unbond(context, &args).await,
        NodeCommand::Settle(args) => crate::node::settle::settle(context, &args).await,
        NodeCommand::Settler(command) => settler::run(context, command).await,
        NodeCommand::Withdraw(args) => node_admin::withdraw(context, &args).await,
        NodeCommand::Status(args) => status::node(context, args.node.as_deref()).await,
        NodeCommand::Run(args) => crate::node::run(context, args).await,
    }
}

fn keygen(context: &Context, args: &KeygenArgs) -> anyhow::Result<()> {
    let public_key = keys::create_identity(&args.out, market::clock::now())?.to_public().to_string();
    let value = json!({ "publicKey": public_key, "file": args.out });
    context
        .out
        .result(&value, || fields(&[("public key", public_key.clone()), ("file", args.out.display().to_string())]))
}
