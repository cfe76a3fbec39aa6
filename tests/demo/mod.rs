//! The demo: its files, its path from top to bottom, its report.

mod files;
mod report;
mod run;
