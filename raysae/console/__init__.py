"""What every command shares: its arguments, its errors, its progress."""
