//! One test file per op, named as the op.
