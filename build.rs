//! Says clearly what is missing before a dependency's build script fails without saying why, and
//! notes when the build was made.

use std::path::Path;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    for (tool, what_for) in [
        (compiler.as_str(), "a C compiler, for the io_uring library that glommio brings"),
        ("git", "git, which glommio's build script asks for"),
    ] {
        let is_there = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !is_there {
            println!(
                "cargo::error=a build needs {what_for}: {tool:?} is not there or does not run"
            );
        }
    }
    if !Path::new("/proc/self/exe").exists() {
        println!("cargo::error=ringkeeper runs on Linux only");
    }
    println!("cargo::rustc-env=RINGKEEPER_BUILT_ON={}", built_on());
}

/// `2026-07-17 18:55 UTC`; the time of `SOURCE_DATE_EPOCH` where a reproducible build sets it.
fn built_on() -> String {
    let seconds = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let seconds: i64 = seconds.unwrap_or_else(|| {
        let since_1970 = std::time::UNIX_EPOCH.elapsed();
        since_1970.map_or(0, |elapsed| elapsed.as_secs() as i64)
    });
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1970 to a civil date: eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3_600, second / 60 % 60)
}
