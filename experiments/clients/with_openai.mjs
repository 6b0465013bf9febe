// OpenAI's npm package: a completion, a streamed chat, and a stream that the client leaves.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "sigma-en", seed: 1, max_tokens: 12 };
const whole = await client.completions.create({ ...asked, prompt: "The" });
console.log(JSON.stringify(whole.choices[0].text), whole.usage);
const messages = [{ role: "user", content: "Say hello" }];
const stream = client.chat.completions.stream({ ...asked, messages });
console.log("stream", JSON.stringify(await stream.finalContent()));
const left = await client.chat.completions.create({ ...asked, max_tokens: 100, messages, stream: true });
for await (const part of left) { left.controller.abort(); }
console.log("left");
