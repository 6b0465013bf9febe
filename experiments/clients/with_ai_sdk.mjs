// Vercel's AI SDK: text, a stream, an object with a schema.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const url = `${process.argv[2]}/v1`;
const model = createOpenAICompatible({ name: "sigma", baseURL: url, supportsStructuredOutputs: true })("sigma-en");
const asked = { model, prompt: "Say hello", maxOutputTokens: 12, seed: 1, maxRetries: 0 };
console.log(JSON.stringify((await generateText(asked)).text));
const parts = [];
for await (const part of streamText(asked).textStream) parts.push(part);
console.log("stream", parts);
const schema = z.object({ n: z.number().int().min(0).max(99) });
console.log("object", (await generateObject({ ...asked, maxOutputTokens: 100, schema })).object);
