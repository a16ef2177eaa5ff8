//! Stub: agent.
