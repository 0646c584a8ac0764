//! Reads the fields of a TOML table one by one, and notes every mistake with its line.
//!
//! A field is described where it is read: its name, what it means, what it may be. The same description reads the
//! value, words the mistake and makes the entry of the JSON Schema, so the three cannot differ. Reading goes on after
//! a mistake, with a value that may be wrong but is within its bounds.
use std::{
    cell::RefCell,
    fmt,
    ops::{Range, RangeInclusive},
};

use serde_json::{Map, Value as Json, json};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Span, fault::PPM_PER_PERCENT};

/// The longest piece of the file that a mistake shows, in characters.
const FOUND_CHARS_MAX: usize = 60;

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where in the file, in bytes.
    at: usize,
    pub line: usize,
    /// The field, from the root of the file.
    pub field: String,
    /// The value in question, if there is one.
    pub found: Option<String>,
    /// What is wrong, and what would be right.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.field)?;
        if let Some(found) = &self.found {
            write!(f, " = {found}")?;
        }
        if !self.field.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.expected)
    }
}

/// A file's text and what is wrong with it so far.
pub struct Source<'a> {
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'a> Source<'a> {
    pub fn new(text: &'a str) -> Source<'a> {
        Source { text, mistakes: RefCell::default() }
    }

    pub fn note(&self, at: Range<usize>, field: String, found: Option<String>, expected: String) {
        let line = self.text[..at.start].matches('\n').count() + 1;
        self.mistakes.borrow_mut().push(Mistake { at: at.start, line, field, found, expected });
    }

    pub fn is_clean(&self) -> bool {
        self.mistakes.borrow().is_empty()
    }

    /// In the order of the file.
    pub fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| mistake.at);
        mistakes
    }

    fn excerpt(&self, at: Range<usize>) -> String {
        let text = self.text[at].split_whitespace().collect::<Vec<_>>().join(" ");
        match text.char_indices().nth(FOUND_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }
}

/// What a value may be.
enum Form {
    /// `percent`: written in percent, with or without a fraction, and read in parts per million.
    /// `span`: `[least, most]` may stand for the number, to be drawn anew each time.
    Number {
        min: i64,
        max: i64,
        percent: bool,
        span: bool,
    },
    Flag,
    Text,
    Choice(Vec<&'static str>),
    Numbers,
    Texts,
    Table,
    Tables,
}

impl Form {
    fn wanted(&self) -> String {
        match self {
            Form::Number { min, max, percent, span } => {
                let (kind, unit, scale) =
                    if *percent { ("number", ", in percent", PPM_PER_PERCENT) } else { ("whole number", "", 1) };
                let or = if *span { ", or [least, most]" } else { "" };
                format!("a {kind} from {} to {}{unit}{or}", min / scale, max / scale)
            }
            Form::Flag => "true or false".into(),
            Form::Text => "a string".into(),
            Form::Choice(names) => format!("one of {}", names.join(", ")),
            Form::Numbers => "a list of whole numbers".into(),
            Form::Texts => "a list of strings".into(),
            Form::Table => "a table".into(),
            Form::Tables => "a list of tables".into(),
        }
    }

    fn complaint(&self) -> String {
        let complaint = if matches!(self, Form::Choice(_)) { "unknown;" } else { "expected" };
        format!("{complaint} {}", self.wanted())
    }

    /// Tables add what is in them.
    fn schema(&self) -> Json {
        match self {
            Form::Number { min, max, percent, span } => {
                let (kind, scale) = if *percent { ("number", PPM_PER_PERCENT) } else { ("integer", 1) };
                let number = json!({ "type": kind, "minimum": min / scale, "maximum": max / scale });
                if !span {
                    return number;
                }
                let pair = json!({ "type": "array", "items": number, "minItems": 2, "maxItems": 2 });
                json!({ "anyOf": [number, pair] })
            }
            Form::Flag => json!({ "type": "boolean" }),
            Form::Text => json!({ "type": "string" }),
            Form::Choice(names) => json!({ "enum": names }),
            Form::Numbers => json!({ "type": "array", "items": { "type": "integer" } }),
            Form::Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Form::Table => json!({}),
            Form::Tables => json!({ "type": "array" }),
        }
    }

    fn number(&self, value: &DeValue) -> Option<i64> {
        let Form::Number { min, max, percent, .. } = *self else { unreachable!("only numbers are read as such") };
        let number = match value {
            DeValue::Integer(number) => {
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
                number.checked_mul(if percent { PPM_PER_PERCENT } else { 1 })?
            }
            // A float that is not a number, or out of bounds, is cast to something out of bounds or to zero: ask first.
            DeValue::Float(number) if percent => {
                let number = number.as_str().parse::<f64>().ok().filter(|number| number.is_finite())?;
                (number * PPM_PER_PERCENT as f64).round() as i64
            }
            _ => return None,
        };
        (min..=max).contains(&number).then_some(number)
    }

    fn span(&self, value: &DeValue) -> Option<Span> {
        let is_pair = matches!(self, Form::Number { span: true, .. });
        match value {
            DeValue::Array(pair) if is_pair => match pair.as_ref() {
                [min, max] => {
                    let (min, max) = (self.number(min.get_ref())?, self.number(max.get_ref())?);
                    (min <= max).then_some(Span { min, max })
                }
                _ => None,
            },
            _ => self.number(value).map(Span::just),
        }
    }
}

struct Known {
    name: &'static str,
    default: Option<Json>,
    schema: Json,
    required: bool,
}

/// The fields of one table. Whatever is not asked for by the end is a mistake.
pub struct Fields<'a> {
    source: &'a Source<'a>,
    /// The table's own name with a dot, or nothing for the root.
    path: String,
    at: Range<usize>,
    table: &'a DeTable<'a>,
    known: Vec<Known>,
    /// Nobody reads a file: the schema is wanted, of the variant with this number.
    describing: Option<usize>,
    open: bool,
}

impl<'a> Fields<'a> {
    pub fn root(source: &'a Source<'a>, table: &'a DeTable<'a>) -> Fields<'a> {
        Fields { source, path: String::new(), at: 0..0, table, known: Vec::new(), describing: None, open: false }
    }

    /// An empty table of which only the schema is wanted.
    #[cfg(test)]
    pub fn describing(mut self) -> Fields<'a> {
        self.describing = Some(0);
        self
    }

    pub fn number<T>(&mut self, name: &'static str, doc: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: Copy + TryFrom<i64>,
        i64: TryFrom<T>,
    {
        self.optional_number(name, doc, range, Some(default)).unwrap_or(default)
    }

    /// `None` if it is missing and there is no default, or if it is no number at all.
    pub fn optional_number<T>(
        &mut self,
        name: &'static str,
        doc: &str,
        range: RangeInclusive<T>,
        default: Option<T>,
    ) -> Option<T>
    where
        T: Copy + TryFrom<i64>,
        i64: TryFrom<T>,
    {
        let wide = |number: T| i64::try_from(number).ok().expect("bounds are within 64 bits");
        let (min, max) = (wide(*range.start()), wide(*range.end()));
        let form = Form::Number { min, max, percent: false, span: false };
        let read =
            self.read(name, doc, &form, default.map(|number| wide(number).into()), false, |value| form.span(value));
        read.map(|span| T::try_from(span.min).ok().expect("it is within bounds")).or(default)
    }

    /// In percent, read in parts per million.
    pub fn percent(&mut self, name: &'static str, doc: &str, max: i64, default_ppm: u32) -> u32 {
        let form = Form::Number { min: 0, max: max * PPM_PER_PERCENT, percent: true, span: false };
        let default = f64::from(default_ppm) / PPM_PER_PERCENT as f64;
        let read = self.read(name, doc, &form, Some(default.into()), false, |value| form.span(value));
        read.map_or(default_ppm, |ppm| ppm.min as u32)
    }

    /// A number, or bounds within which it is drawn. Without a default it is required.
    pub fn span(&mut self, name: &'static str, doc: &str, range: RangeInclusive<i64>, default: Option<i64>) -> Span {
        let form = Form::Number { min: *range.start(), max: *range.end(), percent: false, span: true };
        let json = default.map(Json::from);
        let read = self.read(name, doc, &form, json, default.is_none(), |value| form.span(value));
        read.unwrap_or(Span::just(default.unwrap_or(*range.start())))
    }

    /// As [`Fields::span`], in percent, read in parts per million.
    pub fn percent_span(&mut self, name: &'static str, doc: &str, max: i64) -> Span {
        let form = Form::Number { min: 0, max: max * PPM_PER_PERCENT, percent: true, span: true };
        let read = self.read(name, doc, &form, None, true, |value| form.span(value));
        read.unwrap_or(Span::just(0))
    }

    pub fn flag(&mut self, name: &'static str, doc: &str, default: bool) -> bool {
        let read = self.read(name, doc, &Form::Flag, Some(default.into()), false, |value| value.as_bool());
        read.unwrap_or(default)
    }

    pub fn text(&mut self, name: &'static str, doc: &str, required: bool) -> Option<String> {
        self.read(name, doc, &Form::Text, None, required, |value| value.as_str().map(str::to_owned))
    }

    pub fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        doc: &str,
        choices: &[(&'static str, T)],
        default: usize,
    ) -> T {
        let form = Form::Choice(choices.iter().map(|(name, _)| *name).collect());
        let chosen = |value: &DeValue| {
            let value = value.as_str()?;
            choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice)
        };
        let read = self.read(name, doc, &form, Some(choices[default].0.into()), false, chosen);
        read.unwrap_or(choices[default].1)
    }

    /// Which of these a table is. If it is none, its other fields are let be.
    pub fn variant(&mut self, name: &'static str, doc: &str, variants: &[&'static str]) -> Option<&'static str> {
        if let Some(variant) = self.describing {
            let schema = json!({ "const": variants[variant], "description": doc });
            self.known.push(Known { name, default: None, schema, required: true });
            return Some(variants[variant]);
        }
        let form = Form::Choice(variants.to_vec());
        let chosen = |value: &DeValue| variants.iter().copied().find(|variant| value.as_str() == Some(variant));
        let read = self.read(name, doc, &form, None, true, chosen);
        self.open = read.is_none();
        read
    }

    pub fn numbers(&mut self, name: &'static str, doc: &str) -> Option<Vec<u64>> {
        self.read(name, doc, &Form::Numbers, None, false, |value| {
            let number = |item: &Spanned<DeValue>| match item.get_ref() {
                DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
                _ => None,
            };
            value.as_array()?.iter().map(number).collect()
        })
    }

    pub fn texts(&mut self, name: &'static str, doc: &str) -> Option<Vec<String>> {
        self.read(name, doc, &Form::Texts, None, false, |value| {
            value.as_array()?.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        })
    }

    /// A table; one that is missing is empty.
    pub fn table<T>(&mut self, name: &'static str, doc: &str, read: impl FnOnce(&mut Fields) -> T) -> T {
        let (source, empty) = (self.source, DeTable::new());
        let found = self.read(name, doc, &Form::Table, None, false, |_| Some(()));
        let value = found.and_then(|()| self.table.get(name));
        let table = value.and_then(|value| value.get_ref().as_table()).unwrap_or(&empty);
        let at = value.map_or(self.at.clone(), |value| value.span());
        let mut fields = Fields {
            source,
            path: format!("{}{name}.", self.path),
            at,
            table,
            known: Vec::new(),
            describing: self.describing,
            open: false,
        };
        let result = read(&mut fields);
        let schema = fields.finish();
        self.describe(schema);
        result
    }

    /// A list of tables, each of one of so many variants.
    pub fn tables<T>(
        &mut self,
        name: &'static str,
        doc: &str,
        variants: usize,
        mut read: impl FnMut(&mut Fields) -> Option<T>,
    ) -> Vec<T> {
        let (source, path) = (self.source, format!("{}{name}.", self.path));
        let child = |at, table, describing| {
            let (known, path) = (Vec::new(), path.clone());
            Fields { source, path, at, table, known, describing, open: false }
        };
        let is_table = |item: &Spanned<DeValue>| item.get_ref().as_table().is_some();
        let all_tables = |value: &DeValue| value.as_array().filter(|items| items.iter().all(is_table)).map(|_| ());
        let found = self.read(name, doc, &Form::Tables, None, false, all_tables);
        if self.describing.is_some() {
            let empty = DeTable::new();
            let describe = |variant| {
                let mut fields = child(0..0, &empty, Some(variant));
                read(&mut fields);
                fields.finish()
            };
            let variants: Vec<_> = (0..variants).map(describe).collect();
            self.describe(json!({ "items": { "oneOf": variants } }));
            return Vec::new();
        }
        let items = found.and_then(|()| self.table.get(name)).and_then(|value| value.get_ref().as_array());
        let mut results = Vec::new();
        for item in items.into_iter().flatten() {
            let table = item.get_ref().as_table().expect("all are tables");
            let mut fields = child(item.span(), table, None);
            results.extend(read(&mut fields));
            fields.finish();
        }
        results
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The field has a legal value that does not go with the rest. What is wrong already is not said again.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) {
        let field = format!("{}{name}", self.path);
        let (at, found) = match self.table.get(name) {
            Some(value) => (value.span(), Some(self.source.excerpt(value.span()))),
            None => {
                let default =
                    self.known.iter().find(|known| known.name == name).and_then(|known| known.default.as_ref());
                (self.at.clone(), default.map(|default| format!("{default} (the default)")))
            }
        };
        let known =
            self.source.mistakes.borrow().iter().any(|mistake| mistake.field == field && mistake.at == at.start);
        if !known {
            self.source.note(at, field, found, expected.into());
        }
    }

    fn read<T>(
        &mut self,
        name: &'static str,
        doc: &str,
        form: &Form,
        default: Option<Json>,
        required: bool,
        convert: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        let mut schema = form.schema();
        schema["description"] = doc.into();
        if let Some(default) = &default {
            schema["default"] = default.clone();
        }
        self.known.push(Known { name, default, schema, required });
        let Some(value) = self.table.get(name) else {
            if required {
                self.wrong(name, format!("missing; expected {}: {doc}", form.wanted()));
            }
            return None;
        };
        let converted = match form {
            Form::Table if value.get_ref().as_table().is_none() => None,
            _ => convert(value.get_ref()),
        };
        if converted.is_none() {
            self.wrong(name, form.complaint());
        }
        converted
    }

    /// Adds to what is known of the last field.
    fn describe(&mut self, schema: Json) {
        let known = self.known.last_mut().expect("a field was read");
        let Json::Object(more) = schema else { unreachable!("a schema is an object") };
        known.schema.as_object_mut().expect("a schema is an object").extend(more);
    }

    /// Notes what nobody asked for. Returns the table's schema.
    pub fn finish(self) -> Json {
        let names: Vec<_> = self.known.iter().map(|known| known.name).collect();
        for key in self.table.keys().filter(|_| !self.open) {
            if !names.contains(&key.get_ref().as_ref()) {
                let field = format!("{}{}", self.path, key.get_ref());
                self.source.note(key.span(), field, None, format!("unknown field; one of {}", names.join(", ")));
            }
        }
        let required: Vec<_> = self.known.iter().filter(|known| known.required).map(|known| known.name).collect();
        let properties: Map<_, _> = self.known.into_iter().map(|known| (known.name.to_owned(), known.schema)).collect();
        json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
    }
}
