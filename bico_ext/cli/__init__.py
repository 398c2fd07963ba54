"""The `bico` command: one short module per subcommand."""
