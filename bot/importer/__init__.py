"""Pictures that enter the archive without Discord: folders and DiscordChatExporter exports."""
