//! Errors of YAML in one line, with the line in the file.

/// The first line of a parser's error. The other lines quote the file, which may hold a password.
pub fn first_line(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// The first line of an error of a document that begins at line `begin` of its file.
pub fn in_file(why: &str, begin: usize) -> String {
    let text = first_line(why);
    let place = text.strip_prefix("line ").and_then(|rest| {
        let (line, rest) = rest.split_once(' ')?;
        Some((line.parse::<usize>().ok()?, rest))
    });
    match place {
        Some((line, rest)) => format!("line {} {rest}", begin + line - 1),
        None => format!("line {begin} and after: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_file() {
        let why = "error: line 3 column 6: mapping values are not allowed\n --> x\n 3 | password: y";
        assert_eq!(first_line(why), "line 3 column 6: mapping values are not allowed");
        assert_eq!(in_file(why, 35), "line 37 column 6: mapping values are not allowed");
        assert_eq!(in_file("no place", 35), "line 35 and after: no place");
    }
}
