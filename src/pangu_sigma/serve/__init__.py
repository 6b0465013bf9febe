"""A trained model over HTTP, in the form of OpenAI's interface, and in the terminal. README.md says what it does."""
