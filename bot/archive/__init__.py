"""The archive of pictures: the port that the rest of the bot relies on, and its adapters."""
