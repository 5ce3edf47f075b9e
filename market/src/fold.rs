//! From events to rows. Pure: the state of a key is the fold over its canonical events, and nothing else.
