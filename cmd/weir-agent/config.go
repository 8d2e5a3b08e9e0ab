package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configFlag names the file; it and cobra's own are no settings.
const configFlag = "config"

var noSettings = []string{configFlag, "help", "version"}

// configFile is where the values of flags came from that no argument gave.
type configFile struct {
	path  string
	lines map[string]int // by flag
}

// readConfig gives flags the values that a YAML file has for them, under their own names;
// those on the command line stay. It is strict: an error names file, line and key.
func readConfig(c *cobra.Command, path string) (*configFile, error) {
	f := &configFile{path: path, lines: map[string]int{}}
	text, err := os.ReadFile(path)
	if err != nil {
		return f, usage("--config: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return f, usage("%s: %w", path, err)
	}
	if doc.Kind == 0 { // nothing but comments
		return f, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return f, f.wrong(root, "settings are lines of KEY: VALUE")
	}
	for i := 0; i < len(root.Content); i += 2 {
		if err := f.set(c.Flags(), root.Content[i], root.Content[i+1]); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f *configFile) wrong(at *yaml.Node, format string, args ...any) error {
	return usage("%s:%d: %w", f.path, at.Line, fmt.Errorf(format, args...))
}

func (f *configFile) set(flags *pflag.FlagSet, key, value *yaml.Node) error {
	flag := flags.Lookup(key.Value)
	if flag == nil || slices.Contains(noSettings, key.Value) {
		return f.wrong(key, "unknown key %q (known: %s)", key.Value, strings.Join(settings(flags), ", "))
	}
	if f.lines[flag.Name] != 0 {
		return f.wrong(key, "%s is given in line %d already", flag.Name, f.lines[flag.Name])
	}
	f.lines[flag.Name] = key.Line
	texts, err := texts(flag, value)
	if err != nil {
		return f.wrong(value, "%s: %w", flag.Name, err)
	}
	if flag.Changed { // by an argument
		delete(f.lines, flag.Name)
		return nil
	}
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		err = list.Replace(texts)
	} else {
		err = flag.Value.Set(texts[0])
	}
	if err != nil {
		return f.wrong(value, "%s: %q is no %s", flag.Name, texts[0], typeName(flag))
	}
	flag.Changed = true
	return nil
}

// texts are a value as arguments would give it. A flag that is a list takes one, NAME=VALUE
// pairs take a mapping.
func texts(flag *pflag.Flag, value *yaml.Node) ([]string, error) {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	_, list := flag.Value.(pflag.SliceValue)
	switch {
	case list && value.Kind == yaml.SequenceNode:
		var out []string
		for _, v := range value.Content {
			if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
				return nil, errors.New("its items must be plain values")
			}
			out = append(out, v.Value)
		}
		return out, nil
	case flag.Name == "map-size" && value.Kind == yaml.MappingNode:
		var out []string
		for i := 0; i < len(value.Content); i += 2 {
			out = append(out, value.Content[i].Value+"="+value.Content[i+1].Value)
		}
		return out, nil
	case list:
		return nil, errors.New("must be a list")
	case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
		return nil, fmt.Errorf("must be a %s", typeName(flag))
	case flag.Value.Type() == "bool" && value.Tag != "!!bool":
		return nil, fmt.Errorf("must be true or false, not %q", value.Value)
	}
	return []string{value.Value}, nil
}

func typeName(flag *pflag.Flag) string {
	switch t := flag.Value.Type(); t {
	case "int", "uint32":
		return "whole number"
	case "duration":
		return "duration such as 5s"
	default:
		return t
	}
}

// settings are the keys a file may have.
func settings(flags *pflag.FlagSet) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(noSettings, f.Name) {
			names = append(names, f.Name)
		}
	})
	return names
}

var flagInFront = regexp.MustCompile(`^--([a-z-]+)`)

// locate makes an error about a flag one about the file that gave it.
func (f *configFile) locate(err error) error {
	var wrong *usageError
	if f == nil || !errors.As(err, &wrong) {
		return err
	}
	text := wrong.Error()
	m := flagInFront.FindStringSubmatch(text)
	if m == nil || f.lines[m[1]] == 0 {
		return err
	}
	return usage("%s:%d: %s", f.path, f.lines[m[1]], strings.TrimPrefix(text, "--"))
}
