"""What each command does, as tables: name, shape of its arguments, flags, function."""
