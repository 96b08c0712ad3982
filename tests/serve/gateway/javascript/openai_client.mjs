// What OpenAI's own JavaScript client makes of a gateway: `node openai_client.mjs FOLDER URL KEY PART` does one part and
// writes what it saw as JSON. FOLDER is where npm installed the client.

import { createRequire } from "node:module";

const [folder, url, key, part] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/package.json`)("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 30_000 });
const hello = { model: "bot", messages: [{ role: "system", content: "Be brief." }, { role: "user", content: "Hello?" }] };
const tools = [
  {
    type: "function",
    function: { name: "weather_in", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];
const response_format = {
  type: "json_schema",
  json_schema: { name: "weather", schema: { type: "object", properties: { degrees: { type: "integer" } } } },
};

async function failed(asked) {
  try {
    await asked();
  } catch (error) {
    const { status, code, type, param, requestID } = error;
    const known = error instanceof OpenAI.APIError;
    return { class: error.constructor.name, known, status, code, type, param, requestID, message: error.message };
  }
  return null;
}

const parts = {
  async whole() {
    const { data, response } = await client.chat.completions.create(hello).withResponse();
    const headers = Object.fromEntries(response.headers);
    return { answer: data, headers, models: (await client.models.list()).data.map((model) => model.id) };
  },

  async stream() {
    const stream = await client.chat.completions.create({
      ...hello,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return { chunks };
  },

  async tools() {
    const asked = { ...hello, tools, tool_choice: "required" };
    const whole = await client.chat.completions.create(asked);
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    return { whole: whole.choices[0], streamed: streamed.choices[0] };
  },

  async structured() {
    const answer = await client.chat.completions.parse({ ...hello, response_format });
    return { content: answer.choices[0].message.content };
  },

  async responses() {
    const whole = await client.responses.create({ model: "bot", input: "Hello?" });
    const kinds = [];
    const stream = await client.responses.create({ model: "bot", input: "Hello?", stream: true });
    for await (const event of stream) kinds.push(event.type);
    return { text: whole.output_text, kinds };
  },

  async embeddings() {
    return { vectors: (await client.embeddings.create({ model: "bot", input: ["a", "b"] })).data };
  },

  async errors() {
    const other = new OpenAI({ baseURL: `${url}/v1`, apiKey: "tl-wrong", maxRetries: 0 });
    return {
      model: await failed(() => client.chat.completions.create({ ...hello, model: "nobody" })),
      key: await failed(() => other.chat.completions.create(hello)),
      body: await failed(() => client.chat.completions.create({ ...hello, max_tokens: 0 })),
      stream: await failed(() => client.chat.completions.create({ ...hello, stream: true, n: 99 })),
    };
  },

  async broken() {
    return {
      error: await failed(async () => {
        const stream = await client.chat.completions.create({ ...hello, stream: true });
        for await (const _ of stream);
      }),
    };
  },

  async abort() {
    const stream = await client.chat.completions.create({ ...hello, stream: true });
    let chunks = 0;
    for await (const _ of stream) {
      chunks += 1;
      if (chunks === 3) stream.controller.abort();
    }
    return { chunks };
  },
};

console.log(JSON.stringify(await parts[part]()));
