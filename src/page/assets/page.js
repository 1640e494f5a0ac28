// Keeps what is shown up to date. Everything on the page works without it.
