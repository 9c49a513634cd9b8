//! The sharing matrix: parsed from `data/sharing-matrix.toml`, checked, compiled to a cell table.
