// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Script, console} from "forge-std/Script.sol";

import {Deployment} from "../contracts/src/Deployment.sol";
import {JobEscrow} from "../contracts/src/JobEscrow.sol";
import {NodeRegistry} from "../contracts/src/NodeRegistry.sol";
import {TestToken} from "../contracts/test/mocks/TestToken.sol";

/// @title The transactions of a deployment
/// @notice `scripts/deploy` runs it, after checking parameters, chain and balance, and checks and records what came of it.
/// Every step looks at the chain first, so that it can be repeated at any time and does what is missing.
///
/// From the environment: `OWNER`, `MIN_STAKE`, `BOND` (wei), `UNBONDING_PERIOD`, `THAW_PERIOD`, `MAX_CHALLENGE_WINDOW`,
/// `ARBITER_PERIOD` (seconds), `WITH_TEST_TOKEN`; and `DEPLOYER_KEY`, unless forge is given a wallet.
contract Deploy is Script {
    /// @dev All three come from the deterministic deployer, which forge uses for contracts with a salt.
    bytes32 internal constant SALT = 0;

    /// @notice Creates both contracts, and a test token if asked; accepts their ownership if the sender is the named owner.
    function run() external returns (Deployment deployment) {
        Deployment.Parameters memory p = _parameters();
        bytes memory initCode = abi.encodePacked(type(Deployment).creationCode, abi.encode(p));
        deployment = Deployment(vm.computeCreate2Address(SALT, keccak256(initCode), CREATE2_FACTORY));

        address sender = _startBroadcast();
        if (address(deployment).code.length == 0) {
            require(new Deployment{salt: SALT}(p) == deployment, "forge does not use the deterministic deployer");
        }
        if (vm.envOr("WITH_TEST_TOKEN", false)) {
            bytes32 tokenHash = keccak256(type(TestToken).creationCode);
            if (vm.computeCreate2Address(SALT, tokenHash, CREATE2_FACTORY).code.length == 0) {
                new TestToken{salt: SALT}();
            }
        }
        if (sender == p.owner) _accept(deployment.registry(), deployment.escrow());
        vm.stopBroadcast();
        console.log("Registry %s, escrow %s", address(deployment.registry()), address(deployment.escrow()));
    }

    /// @notice Accepts the ownership of both contracts, as the named owner.
    function accept(NodeRegistry registry, JobEscrow escrow) external {
        _startBroadcast();
        _accept(registry, escrow);
        vm.stopBroadcast();
    }

    function _accept(NodeRegistry registry, JobEscrow escrow) private {
        if (registry.pendingOwner() != address(0)) registry.acceptOwnership();
        if (escrow.pendingOwner() != address(0)) escrow.acceptOwnership();
    }

    /// @return sender Whose transactions these are.
    function _startBroadcast() private returns (address sender) {
        uint256 key = vm.envOr("DEPLOYER_KEY", uint256(0));
        if (key == 0) vm.startBroadcast();
        else vm.startBroadcast(key);
        (, sender,) = vm.readCallers();
    }

    function _parameters() private view returns (Deployment.Parameters memory) {
        return Deployment.Parameters({
            owner: vm.envAddress("OWNER"),
            minStake: uint96(_param("MIN_STAKE", type(uint96).max)),
            bond: uint128(_param("BOND", type(uint128).max)),
            unbondingPeriod: uint64(_param("UNBONDING_PERIOD", type(uint64).max)),
            thawPeriod: uint64(_param("THAW_PERIOD", type(uint64).max)),
            maxChallengeWindow: uint32(_param("MAX_CHALLENGE_WINDOW", type(uint32).max)),
            arbiterPeriod: uint64(_param("ARBITER_PERIOD", type(uint64).max))
        });
    }

    function _param(string memory name, uint256 largest) private view returns (uint256 value) {
        value = vm.envUint(name);
        require(value <= largest, string.concat(name, " is too large"));
    }
}
