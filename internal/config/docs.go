package config

import "strings"

// Docs is the content of docs/config.md, written from the fields that the
// parser accepts.
func Docs() string {
	var b strings.Builder
	b.WriteString(`# Configuration

<!-- Generated from internal/config/fields.go and internal/config/reference.yaml by "make gen". -->

gatehouse reads one or more YAML files (` + "`-c FILE`" + `, several times if wanted). Zones, pools and frontends of all
files count; the rest may be in one of them. ` + "`gatehouse check -c FILE`" + ` prints every problem
as ` + "`FILE:LINE:COL: path: what is wrong; what would be right`" + `. A file that has a problem changes nothing.

Unknown fields, duplicate keys, aliases, empty values and second documents are problems. A file has at most 1 MiB.
Two frontends must not overlap: ` + "`:80`" + ` is in the way of every other frontend on port 80, an address is in the way
of every interface (the kernel refuses to bind both), and zones and interfaces are in each other's way only if the
interface belongs to the zone. Frontends that all have ` + "`hostnames`" + `, each name in one of them, share a port: in the
same zone, or at a listen address that is written alike.

## Reference

` + "```yaml\n")
	b.Write(Reference)
	b.WriteString("```\n\n## Fields\n\n")
	format := APIVersion
	for _, block := range blocks {
		if block.format != format {
			format = block.format
			b.WriteString("## Files of l4proxy (`apiVersion: " + format + "`)\n\n")
		}
		block.document(&b)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func (b *block) document(out *strings.Builder) {
	title := "Top level"
	if b.path != "" {
		title = "`" + b.path + "`"
	}
	out.WriteString("### " + title + "\n\n")
	if b.doc != "" {
		out.WriteString(b.doc + "\n\n")
	}
	out.WriteString("| field | type | default | meaning |\n|---|---|---|---|\n")
	for _, f := range b.fields {
		out.WriteString("| `" + f.key + "` | " + f.typ + " | " + f.def + " | " + f.doc + " |\n")
	}
	out.WriteString("\n")
	if len(b.later) == 0 {
		return
	}
	out.WriteString("Not supported yet, and refused: ")
	for i, r := range b.later {
		if i > 0 {
			out.WriteString(", ")
		}
		out.WriteString("`" + r.key + "`")
	}
	out.WriteString(".\n\n")
}
