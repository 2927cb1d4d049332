"""The device port: what the replay needs of a device, and three backends of it."""
