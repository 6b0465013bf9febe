"""HTTP server of a trained model, with OpenAI's interface, and a chat in the terminal. docs/how_to/serve.md lists the features."""
