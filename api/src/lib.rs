//! The HTTP API (`serve`) and the settler (`settle`) of Littoral: two processes of one program.

pub mod serve;
pub mod settle;
