"""Transfer: chats from other programs into a data folder, and back to them."""
