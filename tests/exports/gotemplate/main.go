// Renders dialogues with templates of Go's text/template, as Ollama does: reads a JSON list of cases, writes a JSON list
// of texts. Messages of one role that follow each other are joined first, and all system texts are .System.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role      string     `json:"role"`
	Content   string     `json:"content"`
	Thinking  string     `json:"reasoning_content"`
	ToolCalls []toolCall `json:"tool_calls"`
}

type toolCall struct {
	Function struct {
		Name      string    `json:"name"`
		Arguments arguments `json:"arguments"`
	} `json:"function"`
}

type arguments map[string]any

func (a arguments) String() string { return asJSON(a) }

type tool map[string]any

func (t tool) String() string { return asJSON(t) }

// asJSON writes compact JSON without escapes for HTML; Ollama's own types order their keys, maps are sorted.

type dialogue struct {
	Template string     `json:"template"`
	Messages []*message `json:"messages"`
	Tools    []tool     `json:"tools"`
	Think    *bool      `json:"think"`
}

func asJSON(v any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		log.Fatal(err)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func (d dialogue) text() string {
	var system []string
	var joined []*message
	for _, one := range d.Messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == one.Role && one.Role != "tool" {
			joined[last].Content += "\n\n" + one.Content
		} else {
			joined = append(joined, one)
		}
	}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": asJSON}).Parse(d.Template)
	if err != nil {
		log.Fatal(err)
	}
	var out bytes.Buffer
	names := map[string]any{
		"System": strings.Join(system, "\n\n"), "Messages": joined, "Tools": d.Tools, "Response": "",
		"Think": d.Think != nil && *d.Think, "IsThinkSet": d.Think != nil,
	}
	if err := parsed.Execute(&out, names); err != nil {
		log.Fatal(err)
	}
	return out.String()
}

func main() {
	var dialogues []dialogue
	if err := json.NewDecoder(os.Stdin).Decode(&dialogues); err != nil {
		log.Fatal(err)
	}
	texts := make([]string, len(dialogues))
	for k, one := range dialogues {
		texts[k] = one.text()
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		log.Fatal(err)
	}
}
