"""The one `mapseek` command."""
