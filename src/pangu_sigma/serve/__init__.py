"""HTTP server of a trained model, with OpenAI's interface, and a chat in the terminal. README.md lists the features."""
